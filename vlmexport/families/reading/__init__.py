"""What the families share: documents of a folder, and sizes of towers and language models as their configs say them."""
