"""Other libraries on our benchmark cases: `make bench-peers`.

One file for each peer, one process for each peer and thread count. A peer's thread pool disturbs whatever else runs
in its process (ONNX Runtime's and OpenVINO's were seen to triple the times of small two-thread cases), so ours and
torch are measured beside each peer anew, in turns, and every ratio is from within one process.
"""
