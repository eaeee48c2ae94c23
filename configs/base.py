"""SpidR base: the published recipe (arXiv 2512.20308, section 4), LibriSpeech 960 h.

  python -m spidr_jax.main --config=configs/base.py --config.data.manifest=train-960.csv

Planned for 16 GPUs of 80 GB, 237.5 s of audio each a step. On fewer, set data.planned_devices to
their number (a smaller batch than the published one). The published run took 15 h on 16 H100 with
the PyTorch reference; its layer-6 codebooks reach ABX 2.99 % within, 3.33 % across speakers.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spidr_jax.model.config import CONV_LAYERS


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.workdir = ""  # where the run lies; empty: runs/ + the name of the config file
    config.init_from = ""  # run, checkpoint or PyTorch file whose weights a new run starts from
    config.resume_step = placeholder(int)  # of the checkpoint to go on from; 0: a new start
    config.allow_changes = ""  # fields, such as "optimizer.lr,data", that may differ on resume
    config.seed = 0
    config.steps = 400_000  # only ends the run
    config.freeze_step = 200_000  # extractor and projection do not train after so many steps
    config.precision = "bfloat16"  # of the computation; state, sums and losses are float32
    config.log_every = 200
    config.max_skipped = 10  # updates in a row that are not finite, before the run stops
    config.watchdog_seconds = 900  # without a finished step, then the process ends; 0: never
    config.evaluation = ""  # name:manifest:alignment:item,... for unit quality and ABX
    config.evaluation_every = 10_000  # steps; at the start and at the end too, 0: only then
    config.evaluation_share = 0.05  # of the time, which evaluations in between may not exceed
    config.validation = ""  # name:manifest,... to measure the loss and its company on
    config.validation_every = 2_500  # steps; at the start and at the end too
    config.compilation_cache = "~/.cache/spidr_jax/xla"  # folder of compiled programs; empty: none
    config.tensorboard = False  # event files in workdir/tensorboard
    config.wandb = ""  # Weights & Biases project

    config.model = ConfigDict()
    config.model.model_type = "spidr"
    config.model.frontend = "conv"
    config.model.encoder_layer = "transformer"
    config.model.head = "linear"
    config.model.extractor_mode = "layer_norm"
    config.model.extractor_conv_bias = False
    config.model.extractor_conv_layer_config = CONV_LAYERS  # (channels, kernel, stride), ...
    config.model.encoder_embed_dim = 768
    config.model.encoder_projection_dropout = 0.0
    config.model.encoder_pos_conv_kernel = 95
    config.model.encoder_pos_conv_groups = 16
    config.model.encoder_pos_conv_depth = 5
    config.model.encoder_num_layers = 12
    config.model.encoder_num_heads = 12
    config.model.encoder_attention_dropout = 0.1
    config.model.encoder_ff_interm_features = 3072
    config.model.encoder_ff_interm_dropout = 0.0
    config.model.encoder_dropout = 0.1
    config.model.encoder_layer_norm_first = False
    config.model.encoder_layer_drop = 0.0
    config.model.encoder_qkv_bias = False
    config.model.codebook_size = 256
    config.model.num_codebooks = 8  # predicted by the last so many layers

    config.codebook = ConfigDict()
    config.codebook.decay = 0.9

    config.teacher = ConfigDict()
    config.teacher.schedule = "exponential"
    config.teacher.decay = 0.999
    config.teacher.timescale = 20_000.0
    config.teacher.threshold = 1e-7
    config.teacher.final_decay = 0.9999  # of the linear schedule
    config.teacher.final_step = 30_000
    config.teacher.exclude_layers = ("pos_conv_embed",)  # copied from the student

    config.masking = ConfigDict()
    config.masking.mask_prob = 0.8
    config.masking.mask_length = 10
    config.masking.mask_selection = "static"
    config.masking.mask_other = 0.0
    config.masking.no_mask_overlap = False
    config.masking.mask_min_space = 1
    config.masking.group_rows = 16  # rows that get equally many masked frames

    config.optimizer = ConfigDict()
    config.optimizer.lr = 5e-4
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.max_norm = 10.0
    config.optimizer.scheduler = "tristage"
    config.optimizer.warmup_steps = 12_000
    config.optimizer.hold_steps = 188_000
    config.optimizer.decay_steps = 200_000
    config.optimizer.max_steps = 400_000  # of the cosine schedule
    config.optimizer.init_lr_scale = 0.01
    config.optimizer.final_lr_scale = 0.01
    config.optimizer.rsqrt_timescale = 10_000
    config.optimizer.rsqrt_shift = 0

    config.data = ConfigDict()
    config.data.manifest = placeholder(str)
    config.data.sources = ""  # name:manifest:weight,... instead of one manifest
    config.data.embedded_corpus = ""  # folder in which to make the embedded corpus
    config.data.min_samples = 2_000
    config.data.max_samples = 320_000
    config.data.num_rungs = 8  # different lengths of a batch
    config.data.max_batch_samples = 3_800_000  # of one device
    config.data.planned_devices = 16  # the global batch is theirs, whatever runs it
    config.data.num_threads = 8
    config.data.max_bad_share = 0.01

    config.sharding = ConfigDict()
    config.sharding.fsdp = False  # split the state over the devices: less memory, more traffic

    config.memory = ConfigDict()  # what saves memory for time, with equal results
    config.memory.accumulate = 1  # parts of a batch, one after the other; less rows at a time
    config.memory.remat = False  # compute layers again in the backward pass

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 2_500
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 0  # those of every so many steps stay too
    config.checkpoint.best = ""  # metric of a validation, such as dev/loss, whose best stays too
    return config
