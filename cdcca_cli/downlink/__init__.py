"""C of Equation 1: what the cloud learnt, down to the device in as few bytes as possible.

`sender.compress` makes an update from an adaptation, `receiver.apply` installs one. In between:
`delta` (Eq. 7 and 8), `nf4` and `linear` (quantisers), `scales` (block scales), `groups` (what is
sent), `allocation` (how many bits each tensor gets), `coding` (the payload: its docstring is the
specification). numpy and zstandard only: a device needs no torch to apply an update.
"""
