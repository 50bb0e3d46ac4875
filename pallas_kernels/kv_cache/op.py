"""Registers the implementations of the decode step over an encoded cache."""

from pallas_kernels.dispatch import Op
from pallas_kernels.kv_cache.decode import decode_chunked, decode_reference
from pallas_kernels.kv_cache.gpu.blocks import HopperPackedBlocks
from pallas_kernels.kv_cache.gpu.decode_op import decode_gpu
from pallas_kernels.kv_cache.stored_basis import in_stored_basis
from pallas_kernels.kv_cache.tpu.blocks import TpuPackedBlocks
from pallas_kernels.kv_cache.tpu.decode_op import decode_tpu

attention_decode_packed = Op("attention_decode_packed")
attention_decode_packed.register("tpu", in_stored_basis(decode_tpu), blocks=TpuPackedBlocks)
attention_decode_packed.register("gpu", in_stored_basis(decode_gpu), blocks=HopperPackedBlocks)
attention_decode_packed.register("chunked", in_stored_basis(decode_chunked))
attention_decode_packed.register("reference", decode_reference)
