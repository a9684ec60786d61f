"""A study of many runs: cases, their test, and the page about them."""
