"""``python -m ccm.cli``."""

from ccm.cli import main

main()
