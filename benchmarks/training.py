"""Our fine-tuning and preference training against TRL's trainers called by hand with the same settings.

    python benchmarks/training.py [--examples 48] [--json OUT]

Each measurement is a process of its own: the same rows, model, adapter, batch, learning rate and one epoch. By hand means
what TRL's documentation shows: a data set of messages, `SFTTrainer` or `RewardTrainer`, a PEFT configuration, `train()`.
SFT groups its rows by length on both sides; the preference model on neither, since TRL's `RewardTrainer` cannot by itself.
Time is that of `train()` alone, memory the process's peak.
"""

import json
import subprocess
import sys

from bench import arguments, machine, show, write

COMMON = """
import json, os, resource, sys, tempfile, time
os.environ["CAI_NB_QUIET"] = "1"
import torch
from datasets import Dataset
from cai_nb.loading import load_pretrained
from cai_nb.pairs import labelled_comparisons
from cai_nb.training import linear_names, lora_config, trainer_defaults
from peft import LoraConfig
n, out = int(sys.argv[1]), tempfile.mkdtemp()
pairs = [r for r in labelled_comparisons("harmlessness", 1.0, None)][:n]
torch.manual_seed(0)
def plain(model, task, **more):  # the same adapter, in PEFT's own layers
    return LoraConfig(r=16, lora_alpha=32, target_modules=linear_names(model), layers_to_transform=list(range(15, 30)), task_type=task, **more)
def done(seconds, rows):
    print(json.dumps({"seconds": seconds, "rows": rows, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
WAYS = {
    ("SFT", "ours"): """
from cai_nb.sft import SFTSettings, finetune
examples = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs]
found = finetune("default", examples, out, SFTSettings(epochs=1, max_length=256))
done(found["seconds"], found["examples"])
""",
    ("SFT", "TRL by hand"): """
from trl import SFTConfig, SFTTrainer
model, tokenizer, _ = load_pretrained("default")
rows = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs])
args = SFTConfig(output_dir=out, per_device_train_batch_size=8, num_train_epochs=1, learning_rate=3e-4, lr_scheduler_type="constant",
                 max_length=256, completion_only_loss=True, train_sampling_strategy="group_by_length", **trainer_defaults())
trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer,
                     peft_config=plain(model, "CAUSAL_LM"))
start = time.time(); trainer.train()
done(time.time() - start, len(trainer.train_dataset))
""",
    ("preference", "ours"): """
from cai_nb.preference import SoftRewardTrainer, heads_of, preference_rows, sequence_classifier
from trl import RewardConfig
heads = heads_of(pairs, "kind")
model, tokenizer, _ = sequence_classifier("default", None, heads=heads)
rows, kept, dropped = preference_rows(pairs, tokenizer, 256, "soft", heads)
args = RewardConfig(output_dir=out, per_device_train_batch_size=8, num_train_epochs=1, learning_rate=2e-4, max_length=None, **trainer_defaults())
trainer = SoftRewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                            peft_config=lora_config(model, 16, 0.5, task="SEQ_CLS", modules_to_save=["score"]))
start = time.time(); trainer.train()
done(time.time() - start, len(rows))
""",
    ("preference", "TRL by hand"): """
from trl import RewardConfig, RewardTrainer
from cai_nb.preference import sequence_classifier
model, tokenizer, _ = sequence_classifier("default", None, heads=("all",))
rows = Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pairs])
args = RewardConfig(output_dir=out, per_device_train_batch_size=8, num_train_epochs=1, learning_rate=2e-4, max_length=256, **trainer_defaults())
trainer = RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer,
                        peft_config=plain(model, "SEQ_CLS", modules_to_save=["score"]))
start = time.time(); trainer.train()
done(time.time() - start, len(trainer.train_dataset))
""",
}


def main():
    args = arguments(__doc__, examples={"type": int, "default": 48})
    rows = []
    for (what, who), code in WAYS.items():
        done = subprocess.run([sys.executable, "-c", COMMON + code, str(args.examples)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        rows.append({"what": what, "who": who, **json.loads(done.stdout.splitlines()[-1])})
    for a, b in zip(rows[::2], rows[1::2]):
        a |= {"time, ratio to TRL": a["seconds"] / b["seconds"], "memory, ratio to TRL": a["MiB"] / b["MiB"]}
    print(machine())
    show(rows)
    write(args.json, rows=rows, examples=args.examples)


if __name__ == "__main__":
    main()
