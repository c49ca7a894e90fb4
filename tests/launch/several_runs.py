"""A program that trains several small configs, one after the other, in the job it belongs to."""

import json
import pathlib
import sys

from asgd.training import distributed


def configs():
    """Yields names and configs: a CNN with a server, agents, and local steps."""
    from asgd.workloads import models
    from configs import default
    import flax.linen as nn

    class Tiny(nn.Module):
        """A CNN that compiles fast."""

        num_classes: int

        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            return nn.Dense(self.num_classes)(nn.relu(nn.Conv(6, (3, 3))(x)).mean(axis=(1, 2)))

    models._MODELS["cnn"] = Tiny
    config = default.get_config()
    config.num_gradients = 32
    config.batch_size = 4
    config.model.hidden = (16,)
    config.cluster.num_workers = config.gossip.num_agents = 4
    config.evaluate_every_epochs = 0.08
    config.log_every = 12
    for name, changes in {
        "cnn": {"model.name": "cnn", "algorithm": "dc_asgd_c"},
        "gossip": {"algorithm": "pc_asgd", "gossip.graph": "ring", "gossip.delay": 2},
        "averaging": {"algorithm": "delayed_averaging", "averaging.period": 3},
    }.items():
        one = config.copy_and_resolve_references()
        one.update_from_flattened_dict(changes)
        yield name, one


def main(folder):
    distributed.initialize()
    from asgd.training import loop

    digests = {name: loop.train(config, pathlib.Path(folder, name))["params_digest"]
               for name, config in configs()}
    if distributed.is_first():
        pathlib.Path(folder, "digests.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    main(sys.argv[1])
