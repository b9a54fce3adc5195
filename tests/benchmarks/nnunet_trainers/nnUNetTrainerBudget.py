"""nnU-Net's own trainer for a number of seconds (USD_BUDGET_S), its learning rate annealed over them.

They are of wall time, or where USD_PROCESSOR_SECONDS is set of this process's processor time.

Plans, network, loss, optimiser, augmentation and sampling stay nnU-Net's. The validation batches of an epoch, which
only inform its log, are left out, so that every second trains. iterations.json in the fold's folder tells how many
iterations were done, in how many seconds from the third on (the first two prepare caches), batches fetched included.
"""

import json
import os
import time
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

WARM_UP_ITERATIONS = 2


class nnUNetTrainerBudget(nnUNetTrainer):
    def run_training(self) -> None:
        self.on_train_start()
        budget_s = float(os.environ["USD_BUDGET_S"])
        clock = time.process_time if os.environ.get("USD_PROCESSOR_SECONDS") else time.monotonic
        iterations, start = 0, clock()
        measured_from = start
        while clock() - start < budget_s:
            left = max(1e-3, 1 - (clock() - start) / budget_s)
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * left**0.9
            self.network.train()
            self.train_step(next(self.dataloader_train))
            iterations += 1
            if iterations == WARM_UP_ITERATIONS:
                measured_from = clock()
        seconds = clock() - measured_from
        facts = {"iterations": iterations, "iterations_per_s": (iterations - WARM_UP_ITERATIONS) / seconds}
        Path(self.output_folder, "iterations.json").write_text(json.dumps(facts))
        self.on_train_end()  # saves checkpoint_final.pth

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: both sides are scored by one evaluator."""
