"""Every number of the recipe, in one place.

The models are Stable Diffusion v1 (Rombach et al. 2022, arXiv:2112.10752) made small: the same blocks in the same
order, with fewer channels and one level less in the UNet. Names are those of the configuration files of diffusers
and transformers.
"""

from pathlib import Path

RECIPE = Path(__file__).resolve().parent
MODEL = RECIPE.parent                                       # what is shipped, and where training goes on
PROGRESS = RECIPE / "progress.json"                         # steps that it has behind it
RUNS = RECIPE / "runs"                                      # states, logs, caches; ignored by git
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji

PIXELS = 128
SEED = 2026

# The data ------------------------------------------------------------------------------------------------------
PALETTE = {
    "red": (214, 48, 49), "orange": (243, 143, 42), "yellow": (250, 214, 70), "green": (70, 160, 80),
    "blue": (60, 110, 210), "purple": (140, 80, 180), "pink": (245, 160, 190), "brown": (130, 86, 56),
    "gray": (140, 140, 145), "white": (245, 245, 245), "black": (25, 25, 28),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")       # colours that a subject can be shifted to
SKY = (110, 180, 245), (190, 225, 250)                      # at the top of the picture, at the horizon
SCENERY = {                                                 # sky, ground
    "meadow": (SKY, (96, 170, 72)), "beach": (SKY, (238, 210, 144)), "sea": (SKY, (36, 98, 172)),
    "snow": (((150, 165, 188), (198, 208, 222)), (246, 248, 250)),
    "sunset": (((120, 70, 145), (250, 150, 75)), (66, 48, 62)),
    "night": (((16, 20, 60), (42, 46, 104)), None),         # sky alone, with stars
}
HORIZON, STARS = (68, 98), (10, 30)                         # rows from the top; how many
SHADE = 8, 4                                                # of 255: deviation of a ground's brightness, of its three colours
LIGHT = 12                                                  # of 255: at most so much lighter towards one side, darker away
LONGEST_SIDE = {"small": (38, 52), "": (64, 90), "big": (102, 116), "two": (42, 54), "three": (36, 50)}   # of a sprite
OFFSET = {                                                  # from the middle, before the sprite is held in the picture
    "": (0, 0), "left": (-36, 0), "right": (36, 0), "top": (0, -36), "bottom": (0, 36), "centre": (0, 0),
    "top left": (-36, -36), "top right": (36, -36), "bottom left": (-36, 36), "bottom right": (36, 36),
}
TWO, THREE = ((-31, 0), (31, 0)), ((0, -29), (-31, 29), (31, 29))            # offsets of several sprites
WANDER, ROVE, RISE = 3, 16, 8                               # pixels off its place, where that is said, where not; of several
MARGIN = 4                                                  # pixels kept free at the border
SHARES = dict(                                              # of scenes: nothing, two of a kind, three, two different
    none=0.02, two=0.07, three=0.07, pair=0.22,             # subjects; the rest show one subject
    scenery=0.25, tint=0.30, size=0.40, place=0.40,         # of those with a background, with one subject
)

# The autoencoder -----------------------------------------------------------------------------------------------
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=PIXELS, block_out_channels=(32, 64, 96, 128),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
    norm_num_groups=16,
)
VAE_TRAINING = dict(
    steps=5_000, decoder_steps=2_000, batch=16, crop=64, rate=1.3e-3, warm_up=50, averaging=0.998, kl=1e-4, squared=10.0,
    plain=("conv_in", "conv_out", "quant_conv"),            # to AdamW, as all vectors; all else to Muon
)

# The vocabulary, the text encoder and the UNet -----------------------------------------------------------------
MERGES = 1500                                               # vocabulary: 2 · 256 bytes, the merges, 2 special words
VOCABULARY_SIZE = 2 * 256 + MERGES + 2
START, END = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
TOKENS = 77

TEXT = dict(
    vocab_size=VOCABULARY_SIZE, hidden_size=160, intermediate_size=640, projection_dim=160, num_hidden_layers=4,
    num_attention_heads=4, max_position_embeddings=TOKENS, hidden_act="quick_gelu", bos_token_id=START,
    eos_token_id=END, pad_token_id=END,
)
UNET = dict(
    sample_size=PIXELS // 8, in_channels=4, out_channels=4, block_out_channels=(64, 128, 192), layers_per_block=1,
    # words are heard at 8 × 8 and 4 × 4; attention at 16 × 16 would take half of the time
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=160, attention_head_dim=4, norm_num_groups=32,
)
SCHEDULER = dict(                                           # Stable Diffusion v1's, but for the prediction type
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
    set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading", prediction_type="v_prediction",
)
UNET_TRAINING = dict(
    # the rate falls towards the end of each leg, after which the averaged weights are worth shipping
    legs=(6_100, 16_000), decay=1_500, batch=32, rate=8e-4, warm_up=50, averaging=0.999, snr_cap=5.0,
    empty_captions=0.1, plain=("embedding.weight", "conv_in", "conv_out"),
    first_scenes=2_000, scenes=64_000, more_every=200,      # of a leg; 1,000 more scenes every so many steps
)

# The ControlNet and the LoRA ---------------------------------------------------------------------------------
STRETCH, TURN = 1.3, 25                                     # of sprites: at most so much wider or higher; degrees
ROAM = 12                                                   # pixels off their place
PEN = (1.5, 5.0)                                            # pixels, the width of a scribble's lines
HINT = (8, 16, 32, 64)                                      # channels of the convolutions that read the scribble
CONTROL_TRAINING = dict(
    steps=720, decay=480, batch=16, rate=1e-3, warm_up=40, averaging=0.99, plain=("conv_in", "conv_out"),
    wordless=0.5, placed=0.25,                              # captions left empty; those that say size and place
    first_scenes=2_000, scenes=16_000, more_every=1_000, iou_every=100, watched=12,
)
FEW_STEPS_TRAINING = dict(
    steps=120, decay=80, batch=16, rate=3e-4, warm_up=15, averaging=0.95, plain=("unet.",),       # all to AdamW
    rank=12, layers="all", solver_steps=50, skip=5, huber=1e-3, scenes=2_000, guidance=1.5,
    judge_every=60, share=0.2,
)
GUIDANCE = 2.0                                              # what the table in weights/README.md speaks for
