"""Event files for TensorBoard."""

from torch.utils.tensorboard import SummaryWriter

from mlsh.runs.files import writing


class Events:
    """What `tracking.Tracker` logs, under the same names, in a run folder's event files; of videos nothing.

    `begun`: the env steps from which the run is continued; what it had logged beyond them is not shown.
    """

    def __init__(self, folder, begun):
        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=begun + 1)

    def log(self, values, env_steps):
        with writing(self._folder):
            for name, x in values.items():
                self._writer.add_scalar(name, x, env_steps)

    def videos(self, names, path, env_steps):
        pass

    def finish(self, results, summary, env_steps):
        self.log(summary, env_steps)
        self.abandon()

    def abandon(self):
        with writing(self._folder):
            self._writer.close()
