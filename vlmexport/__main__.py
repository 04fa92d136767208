"""``python -m vlmexport``."""

from vlmexport.cli import main

main()
