"""Every number of the recipe, in one place.

The models are Stable Diffusion v1 (Rombach et al. 2022, arXiv:2112.10752) made small: the same blocks in the same
order, with fewer channels and one level less in the UNet. Names are those of the configuration files of diffusers
and transformers.
"""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent            # what is shipped
RUNS = Path(__file__).resolve().parent / "runs"             # states, logs, caches; ignored by git
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji

PIXELS = 128
SEED = 2026

# The data ------------------------------------------------------------------------------------------------------
PALETTE = {
    "red": (214, 48, 49), "orange": (243, 143, 42), "yellow": (250, 214, 70), "green": (70, 160, 80),
    "blue": (60, 110, 210), "purple": (140, 80, 180), "pink": (245, 160, 190), "brown": (130, 86, 56),
    "gray": (140, 140, 145), "white": (245, 245, 245), "black": (25, 25, 28),
}
SHADE = 4                                                   # standard deviation of a background's colour, of 255
LONGEST_SIDE = {"small": (44, 50), "": (74, 82), "big": (102, 110), "pair": (52, 58)}      # of a sprite, in pixels
OFFSET = {
    "": (0, 0), "on the left": (-26, 0), "on the right": (26, 0), "at the top": (0, -26), "at the bottom": (0, 26),
}
WANDER = 4                                                  # pixels by which a sprite misses its place, at most
TWO_SUBJECTS, SIZED, PLACED = 0.16, 0.25, 0.20              # shares of scenes

# The autoencoder -----------------------------------------------------------------------------------------------
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=PIXELS, block_out_channels=(32, 64, 96, 128),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
    norm_num_groups=16,
)
VAE_TRAINING = dict(minutes=29, batch=16, crop=64, rate=2e-3, warm_up=100, averaging=0.999, kl=1e-4)

# The vocabulary, the text encoder and the UNet -----------------------------------------------------------------
MERGES = 900                                                # vocabulary: 2 · 256 bytes, the merges, 2 special words
VOCABULARY_SIZE = 2 * 256 + MERGES + 2
START, END = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
TOKENS = 77

TEXT = dict(
    vocab_size=VOCABULARY_SIZE, hidden_size=160, intermediate_size=640, projection_dim=160, num_hidden_layers=2,
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
    minutes=80, scenes=24_000, batch=64, rate=1.5e-3, warm_up=100, averaging=0.999, snr_cap=5.0, empty_captions=0.1,
)
GUIDANCE = 4.0                                              # with which the figures and the sheet are made
