"""How checkpoints lay quantized weights out: from the named tensors of a module to a weight family, and back.

    module               formats                                          families           written
    awq                  AutoAWQ's gemm                                   Affine             yes
    gptq                 2, 3, 4 and 8 bits, versions 1 and 2,            Affine             symmetric
                         with and without activation order
    compressed_tensors   pack-, int- and float-quantized                  Affine, Float8     yes
    fbgemm_fp8           fbgemm_fp8 and fp8                               Float8             fbgemm_fp8
    bitsandbytes         nf4 and fp4, with and without double             Codebook, Affine   nf4, fp4
                         quantization; LLM.int8

GGUF's block types are the matter of `corral.checkpoints`: `gguf_blocks` reads all, `gguf_encode` writes some.

`config` reads what config.json says of them. Each `decode` keeps codes and scales as they are stored: nothing
is rounded, unless its docstring says so.
"""
