"""vlmexport: a vision-language model, exported to the phone and proved equal."""
