// Nodes 2.0 go on to show the element of a node when an undo has put another node in its place.
const LEFT = "esd-left";

/** Marks the element once its node is removed. */
export function leaveWith(node, element) {
  const onRemoved = node.onRemoved;
  node.onRemoved = function (...given) {
    element.classList.add(LEFT);
    return onRemoved?.apply(this, given);
  };
}

/** Puts the element where that of a removed node of the same number is still shown. */
export function takePlace(node, element) {
  if (!element.isConnected) document.querySelector(`[data-node-id="${node.id}"] .${LEFT}`)?.replaceWith(element);
}
