"""LoopTool on JAX and TPUs: closes the loop between tool-call data and tool-call training."""
