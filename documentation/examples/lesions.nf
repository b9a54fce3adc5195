// Plan, train five folds, choose by cross-validation, predict: with Nextflow 24 or later.
//
//   export usd_raw=/data/raw usd_preprocessed=/data/preprocessed usd_results=/data/results
//   nextflow run lesions.nf -resume --dataset 4 --images /data/scans --masks /data/masks
//
// With an executor (process.executor = 'slurm') each fold is a job of its own; ask for its GPU in nextflow.config
// (process.clusterOptions = '--gres=gpu:1') and give --gpus 5. On one machine --gpus says how many folds run at once. A fold that was killed goes on where it
// was: the same command continues, so that retries are safe. Data and models stay where the variables say; what goes
// from process to process is only that a step has ended.

params.dataset = '4'
params.images = '/data/scans'
params.masks = '/data/masks'
params.time = '9h'
params.gpus = 1

process PLAN {
    cpus 8

    input:
    val dataset

    output:
    val dataset

    script:
    """
    usd_plan_and_preprocess -d ${dataset} --device cuda --memory-gb 8 --workers ${task.cpus}
    """
}

process TRAIN {
    cpus 8
    accelerator 1
    maxForks params.gpus as int
    errorStrategy 'retry'
    maxRetries 3

    input:
    val dataset
    val fold

    output:
    val fold

    script:
    """
    usd_train ${dataset} ${fold} --max-time ${params.time} --workers ${task.cpus}
    """
}

process FIND_BEST {
    input:
    val dataset
    val folds

    output:
    val dataset

    script:
    """
    usd_find_best ${dataset}
    """
}

process PREDICT {
    accelerator 1
    cache false // new scans are predicted, finished ones are gone over

    input:
    val dataset

    script:
    """
    usd_predict -i ${params.images} -o ${params.masks} -d ${dataset} --best
    """
}

workflow {
    planned = PLAN(params.dataset)
    folds = TRAIN(planned, Channel.of(0, 1, 2, 3, 4))
    PREDICT(FIND_BEST(planned, folds.collect()))
}
