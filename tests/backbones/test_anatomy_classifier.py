import torch

from voxelwave.backbones.anatomy_classifier import AnatomyClassifier


def test_volumes_of_a_batch_do_not_see_each_other_and_scale_tells_nothing():
    torch.manual_seed(0)
    network = AnatomyClassifier(3).double()
    images = torch.rand(6, 32, 32, dtype=torch.float64)
    logits = network(images, [1, 3, 2])
    parts = [network(part, [len(part)]) for part in images.split([1, 3, 2])]
    torch.testing.assert_close(logits, torch.cat(parts))
    permuted = images[[0, 3, 1, 2, 5, 4]]
    torch.testing.assert_close(network(permuted, [1, 3, 2]), logits)
    torch.testing.assert_close(network(1e3 * images, [1, 3, 2]), logits, rtol=1e-3, atol=1e-3)
    assert network(torch.zeros(1, 32, 32, dtype=torch.float64), [1]).isfinite().all()
