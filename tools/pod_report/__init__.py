"""The pod report: a training step compiled for TPUs that need not be there, read and counted.

`tools/compile_for_tpu.py` is its command. From the text up: `hlo` reads a compiled program, `loops`
says how often each part runs, `values` follows arrays through it; `matmuls`, `traffic` and
`collectives` count; `program` puts their counts together for one program, `report` for a step,
`pages` prints it. `topology` holds the chips' places.
"""
