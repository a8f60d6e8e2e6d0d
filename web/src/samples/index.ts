/** The sample images. They are files of the page: no other server is needed. */

import astronaut from "../../../service/samserve/export/samples/astronaut.jpg?url";
import chelsea from "../../../service/samserve/export/samples/chelsea.jpg?url";
import coffee from "../../../service/samserve/export/samples/coffee.jpg?url";
import coins from "./coins.jpg?url";

export interface Sample {
  readonly name: string;
  readonly url: string;
}

export const SAMPLES: readonly Sample[] = [
  { name: "coins", url: coins },
  { name: "coffee", url: coffee },
  { name: "astronaut", url: astronaut },
  { name: "chelsea", url: chelsea },
];

/** Load a sample as a file. Rejects if the page's server does not answer. */
export async function loadSample({ name, url }: Sample): Promise<File> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The sample was not found (${response.status}).`);
  return new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" });
}
