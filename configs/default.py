"""Every field of a run, with the values the other configs start from.

    python main.py --config=configs/default.py --workdir=runs/default

Any field can be set on the command line: --config.cluster.num_workers=16
"""

from ml_collections import config_dict


def get_config():
    config = config_dict.ConfigDict()
    config.seed = 0
    config.mode = "emulate"  # Or record: really asynchronous workers, on the clock of this machine.
    config.recorder = "threads"  # record: threads of this process, or ray (actors, of many machines).
    config.recording = config_dict.ConfigDict()
    # Seconds that a worker sleeps for each virtual second that the cluster below computes or
    # communicates, before it pushes: makes stragglers. 0 is not at all.
    config.recording.sleep = 0.0
    config.recording.ray_address = ""  # Of a Ray cluster; "" is this machine.
    config.recording.cpus_per_worker = 1.0  # That Ray reserves.
    config.recording.gpus_per_worker = 0.0
    # With a server: sgd, ssgd, asgd, staleness_aware, dc_asgd_c or dc_asgd_a. Decentralised: dsgd,
    # p_asgd, c_asgd, pc_asgd, pc_asgd_pv or ad_psgd. By local steps: delayed_averaging, local_sgd,
    # elastic_averaging or async_diloco. Sets protocol and transformations.
    config.algorithm = "staleness_aware"

    config.dataset = config_dict.ConfigDict()
    config.dataset.name = "digits"  # digits, mnist, cifar10, imagenet, tiny_shakespeare or text.
    config.dataset.data_dir = ""  # Of prepared TFDS data; "" is TFDS's own default.
    config.dataset.augment = False  # cifar10: pad, crop and flip; imagenet: crops of any size, flips.
    config.dataset.image_size = 224  # imagenet: pixels of a side.
    # auto, always or never: leave images on disk, and read batches ahead. auto: those of imagenet, and
    # more than 2 GiB of others. Results do not depend on it.
    config.dataset.streaming = "auto"
    config.dataset.read_threads = 16  # Streaming: batches read side by side,
    config.dataset.prefetch = 16  # and ahead: so many lie in host memory.
    config.dataset.path = ""  # text: the file; its last tenth is for testing.
    config.dataset.length = 64  # Of text: characters that are predicted in an example.
    config.model = config_dict.ConfigDict()
    config.model.name = "mlp"  # mlp, cnn, resnet20 or resnet50; transformer for text.
    config.model.hidden = (128,)  # Widths of the MLP's hidden layers.
    config.model.width = 128  # Of the transformer.
    config.model.layers = 2
    config.model.heads = 4

    config.batch_size = 16  # Per worker and gradient.
    config.num_epochs = config_dict.placeholder(float)  # Passes over the training set.
    config.num_gradients = config_dict.placeholder(int)  # Gradient events; goes before num_epochs.

    config.learning_rate = 0.1
    # constant, cosine or step; clocked by server updates, or by gradients / num_workers of local steps.
    config.schedule = "constant"
    config.schedule_epochs = ()  # step: where the rate drops.
    config.schedule_factor = 0.1  # step: by what it is multiplied.
    config.warmup_epochs = 0.0  # Linear, from 0.
    config.momentum = 0.0
    config.nesterov = False
    config.weight_decay = 0.0
    config.clip_norm = 0.0  # Each worker clips its gradient to this global norm; 0 is off.

    # staleness_aware: constant, inverse, polynomial(a), exponential(b), hinge(a, b),
    # delay_adaptive(num_workers).
    config.staleness_rule = "inverse"
    config.compensation = config_dict.ConfigDict()  # dc_asgd_c and dc_asgd_a.
    config.compensation.strength = config_dict.placeholder(float)  # None: 0.04 (c), 2 (a).
    config.compensation.factor = 1.0  # On the strength, where schedule='step' drops the rate.
    config.compensation.decay = 0.95
    config.compensation.eps = 1e-7
    config.compensation.per_worker = True

    config.cluster = config_dict.ConfigDict()
    # auto is by algorithm: hardsync for ssgd, which also takes k_sync, k_batch_sync and
    # backup_workers; asynchronous for the others, or softsync if softsync_n is set, which also take
    # k_async, k_batch_async, ssp and staleness_threshold.
    config.cluster.protocol = "auto"
    config.cluster.softsync_n = 0  # softsync: update after floor(num_workers / n) gradients.
    config.cluster.k = config_dict.placeholder(int)  # k_*: gradients of an update.
    config.cluster.spare_workers = config_dict.placeholder(int)  # backup_workers: 0 is hardsync.
    # ssp: how many gradients a worker may be ahead; staleness_threshold: largest staleness.
    config.cluster.staleness_bound = config_dict.placeholder(int)
    # staleness_threshold: drop (also None) or cancel.
    config.cluster.on_late = config_dict.placeholder(str)
    config.cluster.pull = "after"  # The triggering worker pulls after or before its update.
    config.cluster.num_workers = 8
    config.cluster.slowdown = ()  # Factors on compute times, repeated over the workers.
    config.cluster.compute_time = config_dict.ConfigDict()
    # constant, exponential, shifted_exponential, gamma, lognormal or pareto; virtual seconds.
    config.cluster.compute_time.distribution = "gamma"
    config.cluster.compute_time.mean = 1.0
    config.cluster.compute_time.cv = 0.5
    config.cluster.pull_time = 0.0
    config.cluster.push_time = 0.0
    # A trace (.npz or .csv) to fit each worker's times to, instead of those above; they repeat where there
    # are more workers.
    config.cluster.times_from = ""
    config.trace_path = ""  # Replay this trace or schedule (.npz or .csv) instead of making one.

    config.averaging = config_dict.ConfigDict()  # Algorithms of local steps.
    config.averaging.period = 8  # Local steps between two merges; async_diloco: of the fastest.
    # delayed_averaging: cyclic, or whenever_ready (when every worker has an update, and not after a
    # period).
    config.averaging.schedule = "cyclic"
    config.averaging.delay = config_dict.placeholder(int)  # cyclic: steps till the mean is taken;
    config.averaging.max_drift = 16  # None is period. whenever_ready: workers wait beyond it.
    config.averaging.merge_time = 0.0  # Virtual seconds from sending updates to having the copy.
    config.averaging.outer_learning_rate = 1.0  # Of the server, on minus the mean update.
    config.averaging.outer_momentum = 0.0  # Nesterov's; async_diloco: delayed Nesterov, of which
    config.averaging.spread = 0.0  # so much (0 to 1) is spread over the updates in between.
    config.averaging.proportional_steps = True  # async_diloco: slow workers do fewer in a period.
    config.averaging.elasticity = config_dict.placeholder(float)  # None: 0.9 / num_workers.
    config.averaging.measure_every = 1  # Merges between two discrepancies, num_workers**2 work; or 0.
    config.averaging.linear_scaling = False  # learning_rate times num_workers; warm-up from 1 times.

    config.gossip = config_dict.ConfigDict()  # Decentralised algorithms; `cluster` is not used then.
    # two_cliques, ring, torus, complete, star or erdos_renyi.
    config.gossip.graph = "two_cliques"
    config.gossip.num_agents = 8
    config.gossip.edge_probability = 0.5  # erdos_renyi.
    config.gossip.mixing = "metropolis"  # Or uniform.
    config.gossip.delay = 5  # Rounds, on unreliable edges: the bridge of two_cliques, or
    config.gossip.delayed_fraction = 0.25  # so many of the other graphs' edges.
    config.gossip.random_delays = False  # Drawn in each round: with a probability
    config.gossip.delay_probability = 1.0  # from 1 to delay, else none.
    config.gossip.split = "random"  # Of the samples over the agents; label: neighbouring labels.
    config.gossip.theta = 0.5  # pc_asgd: 1 predicts, 0 clips.
    # pc_asgd_pv: paper (the sign in code attributed to the authors, not settled) or descent.
    config.gossip.criterion = "paper"
    config.gossip.per_tensor = False  # pc_asgd_pv: decides for each tensor, or for the agent.
    config.gossip.strength = 1.0  # Of the Taylor term.
    config.gossip.all_steps = True  # Predicts with as many gradients as the delay, or with one.
    config.gossip.warmup_epochs = 0.0  # Of plain consensus.

    config.emulation = config_dict.ConfigDict()
    config.emulation.num_devices = 1  # In a job of several processes always all of its devices.
    config.emulation.backend = "shard_map"  # shard_map, pmap, jit or debug.
    config.emulation.layout = "sharded"  # sharded or replicated.
    config.emulation.waves_per_call = 0  # 0: chosen by batch size.
    config.emulation.snapshot_dtype = ""  # bfloat16 or float16 halve the memory; "" is exact.
    # Gradients of one batched call (vmap), for accelerators; above 1 the bits depend on devices.
    config.emulation.events_per_device = 1

    config.plan = config_dict.ConfigDict()  # What `python -m asgd.plan` compares; runs ignore it.
    config.plan.protocols = ("hardsync", "backup_workers", "k_async", "softsync", "asynchronous", "ssp")
    config.plan.workers = (1, 2, 4, 8, 16, 32, 64)
    config.plan.target = 0.1  # Part of the loss over its minimum that is to be left.
    # Largest and smallest Hessian eigenvalue, or (): the largest is measured along a short run of
    # sequential SGD (or at the work directory's last checkpoint), the smallest is it over `condition`.
    config.plan.eigenvalues = ()
    config.plan.condition = 100.0
    # Loss over its minimum, and variance of a mini-batch's gradient along the steepest direction; None
    # measures them, with 0 as the minimum.
    config.plan.excess = config_dict.placeholder(float)
    config.plan.noise = config_dict.placeholder(float)
    config.plan.batches = 32  # That are measured.
    config.plan.gradients = 100  # Of the short run; curvature is measured at its start and 3 times on.

    config.log_every = 100  # Gradient events.
    config.evaluate_every_epochs = 1.0
    config.model_state_decay = 0.9  # Of the server's running batch-norm statistics.
    config.checkpoint = config_dict.ConfigDict()
    config.checkpoint.every_gradients = 10_000
    config.checkpoint.every_seconds = 600.0  # Looked at wherever a line of metrics is written; 0 is off.
    config.checkpoint.keep = 2
    config.checkpoint.allow_changes = False  # Go on with another config than the run had.
    # A gradient or loss that is not finite: stop the run, or skip it, as if it had not been sent.
    config.on_nonfinite = "stop"
    return config
