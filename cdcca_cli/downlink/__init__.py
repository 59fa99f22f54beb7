"""C of Equation 1: what the cloud learnt, down to the device in as few bytes as possible.

`sender.compress` makes an update from an adaptation, `receiver.apply` installs one, `signing` and
`rotation` say whose updates a device takes. In between:

- `codecs`, the door to all of them: `usq` and `ternary` (on `planes`), `nf4_mixed` (on `nf4`,
  `linear`, `scales`), `sign`, `exact`. A codec's docstring is its specification; `payload` is what
  they share.
- what is sent, and how exactly: `change` (Eq. 7), `groups`, `settings`, then `choice`, which asks
  `steps` (from bytes, an error or the held-out loss), `mixture` and `allocation` (bits by tensor);
  `curve` draws what each would have cost; `expiry`.
- `delta`: the subtraction of Eq. 7 and the addition of Eq. 8.

numpy and zstandard only to decode: a device needs no torch to apply an update.
"""
