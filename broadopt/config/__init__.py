"""From a command line to one checked, typed run: everything that is known before anything is built."""
