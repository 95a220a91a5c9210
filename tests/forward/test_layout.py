import pytest
import torch
from torch import nn

from headstart.forward.functional import functional
from headstart.forward.layout import LARGE, channels_last, of_images, one_by_one, widest
from headstart.models.conv4 import conv4


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 5), (2, 1, 4, 5), (1, 2, 1, 3, 3)])
def test_the_channels_of_a_pixel_come_to_lie_beside_each_other(shape, generator):
    x = torch.randn(shape, generator=generator)
    turned = channels_last(x)
    assert torch.equal(turned, x)
    assert turned.stride()[-3:] == (1, shape[-1] * shape[-3], shape[-3])
    assert channels_last(turned) is turned


def test_what_is_no_image_stays_as_it_is(generator):
    x = torch.randn(2, 3, 4, generator=generator)
    assert channels_last(x) is x


def test_networks_of_images_are_known_by_their_layers():
    assert of_images([nn.Linear, nn.Conv2d]) and not of_images([nn.Linear, nn.Conv1d])


def test_large_images_are_taken_in_turn_on_a_cpu():
    assert one_by_one(torch.zeros(2, 4, 1, 16, 16), channels=LARGE // 1024)
    assert not one_by_one(torch.zeros(2, 3, 1, 16, 16), channels=LARGE // 1024)
    assert not one_by_one(torch.zeros(2, 4, 1, 16, 16, device="meta"), channels=LARGE)
    assert not one_by_one(torch.zeros(2, 4096), channels=LARGE)


def test_the_widest_feature_map_is_as_large_as_strides_leave_it():
    images = torch.zeros(2, 5, 1, 28, 28)
    assert one_by_one(images, widest(conv4((1, 28, 28), 5, filters=32).modules()))
    assert not one_by_one(images, widest(conv4((1, 28, 28), 5, filters=32, downsample="stride").modules()))
    assert widest([nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(3, 6, 3)]) == 8
    assert widest([nn.Linear(2, 3)]) == 1


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_feature_map_of_large_images_is_channels_last(tasks, generator, monkeypatch):
    model, maps = conv4((1, 28, 28), 5, filters=32), []
    forward = functional(model)
    relu = torch.relu

    def watched(layer, x):
        maps.append(x)
        return relu(x)

    monkeypatch.setattr(nn.ReLU, "forward", watched)
    params = {name: value.expand(tasks, *value.shape).clone() for name, value in forward.params.items()}
    x = torch.randn(tasks, 4, 1, 28, 28, generator=generator)
    forward.apply(params, {}, x)
    assert len(maps) == 4 * tasks
    assert all(part.squeeze(0).is_contiguous(memory_format=torch.channels_last) for part in maps)
