"""What a shard carries of a frame: tokens coded with a codebook, or a picture."""
