"""Five unseen icons, one drawing of each: train an embedding for a few steps and classify other designers' drawings.

Prints the accuracy on 100 test tasks of the untrained and of the trained embedding; guessing gives 20 %.
Expected: the trained one is better by at least 10 points.
"""

import headstart

tasks = headstart.tasks.icons(ways=5, shots=1)
model = headstart.conv4(tasks.input_shape, ways=None, filters=16, downsample="stride")
learner = headstart.prototypes(model, ways=5)

untrained = headstart.evaluate(learner, learner.init(None), tasks, episodes=100)
*_, last = headstart.fit(learner, tasks, steps=150, tasks_per_step=4)
trained = headstart.evaluate(learner, last.state.meta, tasks, episodes=100)
print(f"untrained: {untrained.mean:.1%} ± {untrained.ci95:.1%}")
print(f"trained:   {trained.mean:.1%} ± {trained.ci95:.1%}")
