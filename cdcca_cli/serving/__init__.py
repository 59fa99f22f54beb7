"""Models behind an HTTP address: what a served teacher, a served device and a check of it share.

`address` names a server, `http` asks it (retries, pauses, the key), `in_order` keeps many requests
in flight. `llama` speaks llama.cpp's own interface, `openai` that of chat completions. Nothing here
knows frames, lessons or torch.
"""
