// Elements on nodes: their place, for as long as the node is there, and the room for them.

// Nodes 2.0 go on to show the element of a node when an undo has put another node in its place.
const LEFT = "esd-left";

/** Puts an element on a node, of these heights; `leave` is called once the node is removed. */
export function place(node, name, element, heights, leave) {
  // What it shows is no input: neither a prompt nor a workflow is to hold it.
  const widget = node.addDOMWidget(name, `esd_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // the page's own panel would take it off the node
    ...heights,
  });
  widget.serialize = false;
  const onRemoved = node.onRemoved;
  node.onRemoved = function (...given) {
    element.classList.add(LEFT);
    leave();
    return onRemoved?.apply(this, given);
  };
}

/** Puts the element where that of a removed node of the same number is still shown. */
export function takePlace(node, element) {
  if (!element.isConnected) document.querySelector(`[data-node-id="${node.id}"] .${LEFT}`)?.replaceWith(element);
}

/** Makes the node as high as its widgets need, and never less high. */
export function grow(node) {
  const least = node.computeSize()[1];
  if (node.size[1] < least) node.setSize([node.size[0], least]);
  node.graph?.setDirtyCanvas(true, true);
}
