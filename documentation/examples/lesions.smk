# Plan, train five folds, choose by cross-validation, predict: with Snakemake 8 or later.
#
#   export usd_raw=/data/raw usd_preprocessed=/data/preprocessed usd_results=/data/results
#   snakemake -s lesions.smk --cores 8 --resources gpu=1 --config dataset=4 images=/data/scans masks=/data/masks
#
# With an executor plugin (SLURM, ...) each fold is a job of its own. A fold that was killed goes on where it was: the
# same command continues, so that --retries 3 is safe.

DEFAULTS = {"dataset": "4", "images": "/data/scans", "masks": "/data/masks", "time": "9h"}
for key, value in DEFAULTS.items():
    config.setdefault(key, value)

FOLDS = range(5)
DONE = f"{config['masks']}.steps/{config['dataset']}"  # empty files, one for each step that has ended


rule plan:
    output:
        touch(f"{DONE}/plan"),
    threads: 8
    shell:
        "usd_plan_and_preprocess -d {config[dataset]} --device cuda --memory-gb 8 --workers {threads}"


rule train:
    input:
        f"{DONE}/plan",
    output:
        touch(f"{DONE}/fold_{{fold}}"),
    threads: 8
    resources:
        gpu=1,
    shell:
        "usd_train {config[dataset]} {wildcards.fold} --max-time {config[time]} --workers {threads}"


rule find_best:
    input:
        expand(f"{DONE}/fold_{{fold}}", fold=FOLDS),
    output:
        touch(f"{DONE}/find_best"),
    shell:
        "usd_find_best {config[dataset]}"


# It makes no file that Snakemake knows, so that it runs for new scans, too; usd_predict goes over finished ones.
rule predict:
    default_target: True
    input:
        f"{DONE}/find_best",
    resources:
        gpu=1,
    shell:
        "usd_predict -i {config[images]} -o {config[masks]} -d {config[dataset]} --best"
