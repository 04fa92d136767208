"""Work done by other threads and processes: in order, by messages, under a deadline."""
