"""Which int8 layers go back to float, found by measuring before anything is written."""
