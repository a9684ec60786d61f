"""Which files there are, what is known of each, and which of them are used."""
