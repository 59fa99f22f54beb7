"""What a device holds, as files of the runtimes that run on devices.

`targets` names them; each is a module with `write(folder, device, overlay, settings)`, which fills
an empty folder with its files and returns its part of export.json. `placing` says which tensors of
an overlay arrive, `folder` puts the files in place as a whole or not at all.
"""
