"""C of Equation 1: what the cloud learnt, down to the device in as few bytes as possible.

In the cloud, `sender.compress` makes an update from an adaptation:

- `settings`: what is sent, and how exactly; `change`: the difference that is coded (Eq. 7);
- `encode`: one change into one update; `rate`: the step, from a size, an error or the held-out
  loss; `curve`: what every other way would cost;
- `codecs`: the door to all of them; the docstring of each codec is its specification.

On the device, `receiver` installs what `verify` lets through (Eq. 8). Whose updates that is:
`signatures`, and `keys`, which reads key files and makes trust lists.

Decoding needs numpy and zstandard only: a device needs no torch to apply an update.
"""
