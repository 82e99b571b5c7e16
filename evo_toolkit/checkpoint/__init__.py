"""Reading, writing, converting and downloading weights."""
