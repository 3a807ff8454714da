#!/usr/bin/env python
<<<<<<< HEAD
"""The project's command line: ``manage.py help`` lists the commands, ``manage.py up`` starts everything."""

import sys

from zenzefi.runtime.commandline import main

if __name__ == "__main__":
    main(sys.argv)
=======
"""Django's command line."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
>>>>>>> main
