"""What a shard carries of a frame, coded on the device and opened in the cloud.

`pictures` is the payload `frame`: the picture itself, of which the cloud makes the tokens.
"""
