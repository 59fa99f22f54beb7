"""What a shard carries of a frame, and how the cloud opens it.

`klt` codes tokens with a codebook, whose measured `curve` is looked up here; `pictures` codes a
frame as a picture. `opening` makes visual tokens of either. What is sent, and how coarsely, is
decided in `uplink`.
"""
