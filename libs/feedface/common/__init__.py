"""What every room uses: errors, whole files, devices, pictures, command lines."""
