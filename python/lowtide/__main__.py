"""`python -m lowtide`: the command."""

from ._command import main

main()
