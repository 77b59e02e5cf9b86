"""For ``train --import``: a run that a signal hits, and that writes metrics of every iteration.

``DISTURB`` is ``rank:iteration:signal``; the signal comes behind the step of that iteration and
before its hooks, in the first start of the run only. SIGKILL is for the process, any other signal
for its process group, which has the workers of its data loader too.
"""

import os
import signal
import subprocess

from detectron2.engine import hooks

from spatialflow.engine import Trainer

_run_step = Trainer.run_step


def _write(self):
    for writer in self._writers:
        writer.write()


def _run_step_and_disturb(self):
    _run_step(self)
    rank, iteration, name = os.environ["DISTURB"].split(":")
    if self.start_iter or self.iter != int(iteration) or os.environ.get("RANK", "0") != rank:
        return
    number = signal.Signals[name]
    if number == signal.SIGKILL:
        os.kill(os.getpid(), number)
    # By somebody else: the workers heed their parent.
    subprocess.run(["kill", "-s", number.name[3:], "--", str(-os.getpgid(0))])


hooks.PeriodicWriter.after_step = _write
Trainer.run_step = _run_step_and_disturb
