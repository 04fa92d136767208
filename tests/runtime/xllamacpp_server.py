"""xllamacpp's server on a free port of the loopback, as a process: ``python xllamacpp_server.py MODEL MMPROJ``.

The first line on stdout is its address; it ends when its stdin does.
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:3]
params.n_ctx = 2048
params.n_parallel = 1
params.n_gpu_layers = 0
params.cpuparams.n_threads = 1
params.hostnames = ["127.0.0.1"]
params.port = 0
params.endpoint_props = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
