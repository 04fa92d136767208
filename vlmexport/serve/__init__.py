"""A bundle in the browser: its files, transformers.js and one page, over HTTP on loopback."""
