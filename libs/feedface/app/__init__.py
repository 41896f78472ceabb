"""The web page: people put into pictures in a browser, on this machine."""
