"""What stops a start. The message is one sentence for the person at the terminal."""

from __future__ import annotations


class StartError(Exception):
    """Something this machine lacks, or a server that does not come up."""
