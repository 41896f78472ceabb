"""From a folder of any photos to training records: the parts of make_data.py."""
