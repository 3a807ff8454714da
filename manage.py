#!/usr/bin/env python
"""The project's command line: ``manage.py help`` lists the commands, ``manage.py up`` starts everything."""

import sys

from zenzefi.runtime.commandline import main

if __name__ == "__main__":
    main(sys.argv)
