"""How the peers run a model: torch as diffusers does, OpenVINO from diffusers' model, each set up to be fast.

A model is a torch module that takes tensors and returns a tensor; a system is a callable without arguments, which does
the work once.

    torch float32        as it is, torch.inference_mode
    torch bfloat16       weights and activations in bfloat16, channels last
    openvino             converted with static shapes, INFERENCE_PRECISION_HINT f32 or bf16, PERFORMANCE_HINT LATENCY
"""
import warnings


def on_torch(module, arrays, dtype, threads):
    """module: is changed to dtype in place     arrays: its inputs, float32, channels first"""
    import torch
    torch.set_num_threads(threads)
    inputs = [torch.from_numpy(array) for array in arrays]
    if dtype == "bfloat16":
        module = module.to(torch.bfloat16, memory_format=torch.channels_last)
        inputs = [x.to(torch.bfloat16) for x in inputs]
        inputs = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]

    def call():
        with torch.inference_mode():
            return module(*inputs).float().numpy()
    return call


def on_openvino(module, arrays, dtype, threads):
    """The same; the module is not changed."""
    import openvino
    import torch
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # what tracing warns of does not vary here
        converted = openvino.convert_model(module, example_input=tuple(map(torch.from_numpy, arrays)),
                                           input=[array.shape for array in arrays])
    compiled = openvino.Core().compile_model(converted, "CPU", {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return lambda: request.infer(arrays)[0]


def unet_module(model):
    """diffusers' UNet as a module: latents (N, C, H, W), time step (1,), context (N, S, X) → (N, C, H, W)"""
    return _module(model, lambda x, t, context: model(x, t, context, return_dict=False)[0])


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
