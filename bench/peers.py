"""How the peers run a model: torch as diffusers does, compiled or not, OpenVINO and ONNX Runtime from diffusers' model, each
set up to be fast.

A model is a torch module that takes tensors and returns a tensor; a system is a callable without arguments, which does
the work once.

    torch float32        as it is, torch.inference_mode
    torch bfloat16       weights and activations in bfloat16, channels last
    torch.compile        the same through TorchInductor, whose C++ a compiler builds for minutes; weights folded in ("freezing")
    openvino             converted with static shapes, INFERENCE_PRECISION_HINT f32 or bf16, PERFORMANCE_HINT LATENCY
    openvino int8        the same after NNCF has quantised it, for transformers, by some random inputs; what it leaves is bf16
    onnxruntime          exported with static shapes, all of its optimisations of graphs; float32 alone on these processors
"""
import logging
import os
import pathlib
import tempfile
import warnings


def on_torch(module, arrays, dtype, threads, made=lambda module: module):
    """module: is changed to dtype in place     arrays: its inputs, float32, channels first     made: what is called of it"""
    import torch
    torch.set_num_threads(threads)
    inputs = [torch.from_numpy(array) for array in arrays]
    if dtype == "bfloat16":
        module = module.to(torch.bfloat16, memory_format=torch.channels_last)
        inputs = [x.to(torch.bfloat16) for x in inputs]
        inputs = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
    function = made(module)

    def call():
        with torch.inference_mode():
            return function(*inputs).float().numpy()
    return call


def on_compiled_torch(module, arrays, dtype, threads):
    """As `on_torch`; compiled at the first call"""
    import torch
    import torch._inductor.config
    torch._inductor.config.freezing = True
    return on_torch(module, arrays, dtype, threads, torch.compile)


def on_onnxruntime(module, arrays, dtype, threads):
    """The same; the module is not changed. dtype: float32"""
    import onnxruntime
    import torch
    onnxruntime.disable_telemetry_events()               # a benchmark reports to nobody
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # what tracing warns of does not vary here
        path = pathlib.Path(folder, "model.onnx")        # weights of more than 2 GB lie beside it
        torch.onnx.export(module, tuple(map(torch.from_numpy, arrays)), path, dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip((each.name for each in session.get_inputs()), arrays))
    return lambda: session.run(None, inputs)[0]


def on_openvino(module, arrays, dtype, threads, samples=()):
    """The same; the module is not changed. samples: inputs like `arrays`, by which a model of int8 is calibrated"""
    model = converted(module, arrays)
    if dtype == "int8":
        model, dtype = quantised(model, samples), "bfloat16"
    request = compiled(model, dtype, threads)
    return lambda: request.infer(arrays)[0]


def converted(module, arrays):
    """A module as OpenVINO has it, of static shapes; weights of 16 bits stay so, and it computes in float32 for now"""
    import openvino
    import torch
    from openvino.frontend.pytorch.patch_model import __make_16bit_traceable as traceable
    if next(module.parameters()).dtype != torch.float32:
        traceable(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # what tracing warns of does not vary here
        return openvino.convert_model(module, example_input=tuple(map(torch.from_numpy, arrays)),
                                      input=[array.shape for array in arrays])


def quantised(model, samples):
    """A converted model with its products in int8, of weights and activations (post-training quantisation)

    Without correcting biases, which takes minutes and changes no time.
    """
    os.environ.setdefault("NNCF_CI", "1")                # a benchmark reports to nobody
    import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER,
                         advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True))


def compiled(model, dtype, threads):
    """A converted model → an infer request"""
    import openvino
    return openvino.Core().compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}).create_infer_request()


def unet_module(model):
    """diffusers' UNet as a module: latents (N, C, H, W), time step (1,), context (N, S, X) → (N, C, H, W); XL's also takes
    pooled vectors (N, P) and sizes (N, 6)"""
    def call(x, t, context, *added):
        conditions = dict(zip(("text_embeds", "time_ids"), added)) or None
        return model(x, t, context, added_cond_kwargs=conditions, return_dict=False)[0]
    return _module(model, call)


def text_module(model):
    """transformers' text encoder as a module: ids (N, S) → states (N, S, X), and the projected vector (N, P) if it has one"""
    def call(ids):
        found = model(ids, output_hidden_states=False)
        return (found.last_hidden_state, found.text_embeds) if "text_embeds" in found else found.last_hidden_state
    return _module(model, call)


def decoder_module(model):
    """diffusers' decoder as a module: z (N, C, h, w) → images (N, 3, H, W)"""
    model.encoder = None                                 # conversion would take it along
    return _module(model, lambda z: model.decode(z, return_dict=False)[0])


def _module(model, function):
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            return function(*inputs)
    return Module().eval()
