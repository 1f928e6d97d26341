"""The images on which networks are measured: which ones, with which labels, and whether they are the run's."""

import json
from pathlib import Path

import pytest
import torch
from stored import record, store

from broadopt.analysis.landscape.images import Images, check_same
from broadopt.analysis.landscape.runs import Run, chosen
from broadopt.errors import InputError

QUICK = "experiment=quickstart"


def a_run(root: Path, *overrides: str, seed: int = 1, fingerprint: str | None = None) -> Run:
    folder = store(root, record(QUICK, *overrides, seed=seed, fingerprint=fingerprint))
    return chosen([str(folder)], [])[0]


def images(run: Run, **options) -> Images:
    return Images(run, device=torch.device("cpu"), **options)


def test_images_are_normalised_and_not_augmented(tmp_path: Path) -> None:
    run = a_run(tmp_path, "augmentation.mean=[0.5,0.5,0.5]", "augmentation.std=[0.25,0.25,0.25]")
    found = images(run)
    assert (found.train_size, found.test_size) == (1438, 359)
    pixels, labels = found.train()
    raw = found._data._frames[:, 4:36, 4:36].permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(pixels, (raw - 0.5) / 0.25)
    assert pixels.shape == (1438, 3, 32, 32)
    assert labels.bincount().tolist() == torch.bincount(found._data._labels).tolist()
    assert len(found.test()[1]) == 359


def test_fewer_images_are_the_first_of_one_order(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    found = images(run, seed=3)
    for split in (found.train, found.test):
        (few, few_labels), (more, more_labels) = split(10), split(20)
        assert torch.equal(few, more[:10])
        assert torch.equal(few_labels, more_labels[:10])
    assert torch.equal(found.augmented(10), found.augmented(20)[:10])
    assert torch.equal(found.augmented(10), images(run, seed=3).augmented(10))
    assert not torch.equal(found.train(10)[1], images(run, seed=4).train(10)[1])
    assert not torch.equal(found.augmented(10), images(run, seed=4).augmented(10))
    assert len(found.test(10_000)[1]) == 359
    for split in (found.train, found.test):
        (every, _), (more, _), (in_order, _) = split(10_000), split(20), split()
        assert torch.equal(every[:20], more)
        assert not torch.equal(every, in_order)
        assert torch.equal(every.flatten(1).sort(dim=0).values, in_order.flatten(1).sort(dim=0).values)
    assert len(found.augmented(10_000)) == 1438


def test_training_labels_are_noisy_as_the_run_had_them_and_test_labels_are_true(tmp_path: Path) -> None:
    clean, noisy = images(a_run(tmp_path)), images(a_run(tmp_path, "dataset.label_noise=0.25"))
    assert int((clean.train()[1] != noisy.train()[1]).sum()) == round(0.25 * 1438)
    assert torch.equal(clean.train()[0], noisy.train()[0])
    assert torch.equal(clean.test()[1], noisy.test()[1])


def test_held_out_images_are_no_training_images(tmp_path: Path) -> None:
    assert len(images(a_run(tmp_path, "dataset.validation=300")).train()[1]) == 1138


def test_other_images_than_the_runs_are_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path, fingerprint="sha256:0123456789abcdef")
    with pytest.raises(InputError) as raised:
        images(run)
    assert str(raised.value) == (
        f"{run.folder}: its images have the fingerprint sha256:0123456789abcdef, those found here that of the "
        "published data; expected the images of the run"
    )


def test_cifar_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = store(tmp_path, record("dataset=cifar10", "method=sgd"))
    (folder / "config.yaml").write_text("dataset: {data_dir: 7}\n- no yaml")
    with pytest.raises(InputError, match=r"config\.yaml: not YAML that is read here"):
        images(chosen([str(folder)], [])[0])


def test_runs_on_other_images_or_networks_are_not_put_together(tmp_path: Path) -> None:
    first, deeper = a_run(tmp_path), a_run(tmp_path, "model.depth=8")
    noisy, shifted = a_run(tmp_path, "dataset.label_noise=0.5"), a_run(tmp_path, "augmentation.mean=[0,0,0]")
    check_same((first, noisy), networks=False)
    with pytest.raises(InputError) as raised:
        check_same((first, deeper))
    assert str(raised.value).startswith(f"{deeper.folder}: model {{'name': 'resnet20', ")
    assert str(raised.value).endswith("; expected runs on the same images, labels, network and precision")
    check_same((first, deeper), networks=False)
    with pytest.raises(InputError, match=r"augmentation\.mean \[0"):
        check_same((first, shifted))


@pytest.mark.parametrize("networks", [True, False])
def test_runs_on_other_classes_of_the_same_images_are_not_put_together(tmp_path: Path, networks: bool) -> None:
    fine, coarse, apart = (
        chosen([str(store(tmp_path, record("dataset=cifar100", "method=sgd", *words)))], [])[0]
        for words in ((), ("dataset.coarse=true",), ("dataset.data_dir=elsewhere", "dataset.verify=false", "lr=0.2"))
    )
    with pytest.raises(InputError) as raised:
        check_same((fine, coarse), networks=networks)
    assert str(raised.value).startswith(f"{coarse.folder}: dataset.coarse True, but False in {fine.folder}; expected ")
    check_same((fine, apart), networks=networks)


def test_a_kind_of_noise_that_nothing_is_drawn_of_is_no_difference(tmp_path: Path) -> None:
    plain = record(QUICK)
    named = plain | {"dataset": plain["dataset"] | {"noise": "asymmetric"}}  # as earlier versions recorded it
    first, second = (chosen([str(store(tmp_path, one))], [])[0] for one in (plain, named))
    assert first.result["identity"] != second.result["identity"]
    check_same((first, second))


@pytest.mark.parametrize(
    ("overrides", "other", "difference"),
    [
        ((), ("dataset.label_noise=0.5",), "dataset.label_noise 0.5, but 0.0"),
        (
            ("dataset.label_noise=0.5",),
            ("dataset.label_noise=0.5", "dataset.noise=asymmetric"),
            "dataset.noise asymmetric, but symmetric",
        ),
        (("dataset.label_noise=0.5",), None, "seed, which draws wrong labels and held-out images, 2, but 1"),
        (("dataset.validation=300",), None, "seed, which draws wrong labels and held-out images, 2, but 1"),
    ],
)
def test_networks_with_other_training_labels_are_not_put_together(
    tmp_path: Path, overrides: tuple[str, ...], other: tuple[str, ...] | None, difference: str
) -> None:
    first = a_run(tmp_path, *overrides)
    second = a_run(tmp_path, *overrides, seed=2) if other is None else a_run(tmp_path, *other)
    with pytest.raises(InputError) as raised:
        check_same((first, second))
    assert str(raised.value) == (
        f"{second.folder}: {difference} in {first.folder}; expected runs on the same images, labels, network and "
        "precision"
    )
    check_same((first, second), networks=False)


def test_networks_of_another_seed_or_precision(tmp_path: Path) -> None:
    first, second = a_run(tmp_path), a_run(tmp_path, seed=2)
    check_same((first, second))
    config = record(QUICK, precision="bf16")
    (rounded,) = chosen([str(store(tmp_path, config))], [])
    with pytest.raises(InputError, match="precision bf16, but fp32 in "):
        check_same((first, rounded))


def test_code_of_strangers_is_not_run(tmp_path: Path) -> None:
    config = record(QUICK)
    config["dataset"]["_target_"] = "os.system"
    run = chosen([str(store(tmp_path, json.loads(json.dumps(config))))], [])[0]
    with pytest.raises(InputError, match=r"it names os\.system, which is not broadopt's: trust=os runs that code"):
        images(run)
