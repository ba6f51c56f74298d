// Which request is asked next when a few popular ones are asked again and again.
// Knows: numbers. Does not know: requests, who asks.

/** A number in [0, 1) that follows from two whole numbers alone, so that it does not matter which user draws it, or when. */
function drawn(seed, number) {
  let bits = Math.imul(seed + 1, 0x9e3779b9) ^ number;
  bits = Math.imul(bits ^ (bits >>> 16), 0x7feb352d);
  bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
  return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
}

/**
 * The nth request of a run → which of `count` requests it is. The one of rank k is asked 1/k^skew as often as the first
 * (Zipf's law); skew 0: all equally often.
 */
export function popular(count, skew, seed) {
  const shares = [];
  let sum = 0;
  for (let rank = 1; rank <= count; rank++) {
    sum += rank ** -skew;
    shares.push(sum);
  }
  return (number) => {
    const place = drawn(seed, number) * sum;
    const found = shares.findIndex((share) => place < share);
    return found < 0 ? count - 1 : found;
  };
}
